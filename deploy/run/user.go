package run

import (
	"fmt"
	"os/user"
	"slices"
	"strconv"
	"strings"
)

// User is whom the application runs as.
type User struct {
	Name     string // as it was given
	UID, GID uint32
	Groups   []uint32 // supplementary
	Login    string   // "" where the system does not know the number
	Home     string
}

// FindUser reads USER or USER:GROUP, names or numbers. A number that the system
// does not know is taken as it is, with the group of the same number; that is
// what images without /etc/passwd need.
func FindUser(given string) (*User, error) {
	name, groupName, withGroup := strings.Cut(given, ":")
	if name == "" || withGroup && groupName == "" {
		return nil, fmt.Errorf("run: --user %q: write USER or USER:GROUP, names or numbers", given)
	}
	u := &User{Name: given}
	known, err := user.Lookup(name)
	n, notNumber := number(name)
	if err != nil && notNumber == nil {
		known, err = user.LookupId(name)
	}
	switch {
	case err == nil:
		u.Login, u.Home = known.Username, known.HomeDir
		if u.UID, err = number(known.Uid); err != nil {
			return nil, fmt.Errorf("run: --user %s: its number %q cannot be used: %w", given, known.Uid, err)
		}
		if u.GID, err = number(known.Gid); err != nil {
			return nil, fmt.Errorf("run: --user %s: its group %q cannot be used: %w", given, known.Gid, err)
		}
	case notNumber == nil:
		u.UID, u.GID = n, n
	default:
		return nil, fmt.Errorf("run: --user %s: this system has no such user (in /etc/passwd); give its number", given)
	}
	if withGroup {
		if u.GID, err = findGroup(groupName); err != nil {
			return nil, fmt.Errorf("run: --user %s: this system has no group %s (in /etc/group); give its number", given, groupName)
		}
		u.Groups = []uint32{u.GID} // as setpriv --clear-groups: who names a group means that one
		return u, nil
	}
	u.Groups = []uint32{u.GID}
	if known != nil {
		ids, err := known.GroupIds()
		if err != nil {
			return nil, fmt.Errorf("run: --user %s: its groups cannot be read: %w; name one, as %s:GROUP", given, err, name)
		}
		for _, id := range ids {
			if g, err := number(id); err == nil && !slices.Contains(u.Groups, g) {
				u.Groups = append(u.Groups, g)
			}
		}
	}
	return u, nil
}

func findGroup(name string) (uint32, error) {
	if g, err := user.LookupGroup(name); err == nil {
		return number(g.Gid)
	}
	return number(name)
}

func number(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err
}

// Environ is env with what it says of the user brought up to date.
func (u *User) Environ(env []string) []string {
	set := map[string]string{"HOME": u.Home, "USER": u.Login, "LOGNAME": u.Login}
	if u.Home == "" {
		set["HOME"] = "/"
	}
	out := slices.DeleteFunc(slices.Clone(env), func(e string) bool {
		k, _, _ := strings.Cut(e, "=")
		_, ours := set[k]
		return ours
	})
	for _, k := range []string{"HOME", "USER", "LOGNAME"} {
		if set[k] != "" {
			out = append(out, k+"="+set[k])
		}
	}
	return out
}
