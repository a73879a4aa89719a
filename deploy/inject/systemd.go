package inject

import (
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"
)

// SystemdOptions of units. The zero value of a field means its default.
type SystemdOptions struct {
	Binary       string // DefaultBinary
	User         string // of the sidecar: DefaultUser
	ControlPlane string // 127.0.0.1:15012
	Consul       string // 127.0.0.1:8500
	ServiceID    string // id of the service's registration: the unit's name
	Slice        string // control group above the unit's: system.slice
	Port         int    // on which the service listens; 0: nothing inbound is captured
	Mode         string // Transparent or Explicit; Transparent
}

// Defaults of SystemdOptions.
const (
	DefaultBinary = "/usr/local/bin/parrel"
	DefaultUser   = "parrel"
)

// File is one file to be written.
type File struct {
	Path, Text string
	Shared     bool // by all services of the host that have a sidecar
}

// madeBy is the first line of every unit and drop-in: only what begins with it is
// written over or removed.
const madeBy = "# Made by `parrel inject systemd`; your own changes belong into another drop-in."

// MadeByInject says that a file is one of Systemd's.
func MadeByInject(text string) bool { return strings.HasPrefix(text, madeBy) }

var unitName = regexp.MustCompile(`^[A-Za-z0-9:_.\\-]+(@[A-Za-z0-9:_.\\-]*)?\.service$`)

// Systemd gives the units that put a sidecar beside a service: the template of the
// sidecar, which is told apart by the id of the service's registration, and a
// drop-in that makes the service start when its sidecar is ready and stop before
// it. unit is the service's unit, such as web.service. Its own files are not
// touched.
func Systemd(unit string, o SystemdOptions) ([]File, error) {
	if !strings.HasSuffix(unit, ".service") {
		unit += ".service"
	}
	if err := o.fill(unit); err != nil {
		return nil, err
	}
	proxy := "parrel-sidecar@" + escapeUnit(o.ServiceID) + ".service"
	files := []File{
		{"/etc/sysusers.d/parrel.conf", madeBy + "\nu " + o.User + " - \"parrel sidecars\" /var/lib/parrel\n", true},
		{"/etc/systemd/system/parrel-sidecar@.service", o.sidecarUnit(), true},
	}
	if o.Mode == Transparent {
		files = append(files, File{"/etc/systemd/system/" + proxy + ".d/50-parrel.conf",
			madeBy + "\n[Service]\nEnvironment=\"PARREL_SIDECAR_FLAGS=--transparent --ready-bind 127.0.0.1:15021\"\n", false})
	}
	return append(files, File{"/etc/systemd/system/" + unit + ".d/50-parrel.conf", o.dropIn(unit, proxy), false}), nil
}

func (o *SystemdOptions) fill(unit string) error {
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	name := strings.TrimSuffix(unit, ".service")
	def(&o.Binary, DefaultBinary)
	def(&o.User, DefaultUser)
	def(&o.ControlPlane, "127.0.0.1:15012")
	def(&o.Consul, "127.0.0.1:8500")
	def(&o.ServiceID, name)
	def(&o.Slice, "system.slice")
	def(&o.Mode, Transparent)
	plainWord := regexp.MustCompile(`^[^\s"'$%;\\]+$`)
	switch {
	case strings.Contains(unit, "/"):
		return fmt.Errorf("inject systemd: %q: give the unit's name, such as %s, and not a path", unit, path.Base(unit))
	case !unitName.MatchString(unit):
		return fmt.Errorf("inject systemd: %q is no name of a service unit: write it as web.service", unit)
	case strings.HasSuffix(name, "@"):
		return fmt.Errorf("inject systemd: %q is a template, and a sidecar stands for one instance: name the instance, such as %s1.service", unit, name)
	case strings.HasPrefix(name, "parrel-sidecar"):
		return fmt.Errorf("inject systemd: %q is a sidecar itself: name the service's unit", unit)
	case o.Mode != Transparent && o.Mode != Explicit:
		return fmt.Errorf("inject systemd: --mode %q: there are %s and %s", o.Mode, Transparent, Explicit)
	case o.Port < 0 || o.Port > 65535:
		return fmt.Errorf("inject systemd: --service-port %d is no port: give one from 1 to 65535", o.Port)
	case !strings.HasPrefix(o.Binary, "/"):
		return fmt.Errorf("inject systemd: --binary %q is no absolute path, which systemd wants", o.Binary)
	}
	for flag, v := range map[string]string{"binary": o.Binary, "user": o.User, "grpc-addr": o.ControlPlane, "http-addr": o.Consul, "slice": o.Slice, "service-id": o.ServiceID} {
		if !plainWord.MatchString(v) {
			return fmt.Errorf("inject systemd: --%s %q: leave out blanks, quotes, $, %% and backslashes", flag, v)
		}
	}
	return nil
}

// escapeUnit writes an id as a unit's instance name (systemd.unit(5), "String
// escaping").
func escapeUnit(id string) string {
	var b strings.Builder
	for i := range len(id) {
		c := id[i]
		switch {
		case c == '/':
			b.WriteByte('-')
		case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == ':' || c == '_' || c == '.' && i > 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, `\x%02x`, c)
		}
	}
	return b.String()
}

func (o *SystemdOptions) sidecarUnit() string {
	return madeBy + `
# The sidecar of the service instance %I (the id of its registration). Its join token is needed for the first contact
# only: /etc/parrel/%I.token, readable by user ` + o.User + `. /etc/parrel/sidecar.env may hold Consul's variables.
[Unit]
Description=parrel sidecar of %I
After=network-online.target consul.service
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
WatchdogSec=30
TimeoutStartSec=120
User=` + o.User + `
Group=` + o.User + `
StateDirectory=parrel/sidecar/%i
StateDirectoryMode=0700
RuntimeDirectory=parrel-%i
RuntimeDirectoryMode=0700
EnvironmentFile=-/etc/parrel/sidecar.env
ExecStart=` + o.Binary + ` sidecar --sidecar-for %I --grpc-addr ` + o.ControlPlane + ` --http-addr ` + o.Consul +
		` --token-file /etc/parrel/%I.token --data-dir %S/parrel/sidecar/%i --admin-bind unix:%t/parrel-%i/admin.sock --drain-time 20s --log-json $PARREL_SIDECAR_FLAGS
Restart=always
RestartSec=1
TimeoutStopSec=40
LimitNOFILE=262144
LimitCORE=0
UMask=0077

# It needs no capability at all: redirection rules are made beside it, by the drop-in of the service.
CapabilityBoundingSet=
AmbientCapabilities=
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RemoveIPC=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
`
}

// dropIn orders a service after its sidecar. The rules are made as root (the
// sign +) when the unit's control group is there and before its program is.
func (o *SystemdOptions) dropIn(unit, proxy string) string {
	text := madeBy + `
# ` + unit + ` starts when its sidecar is ready and stops before it; when the sidecar is stopped, so is the service. A
# sidecar that crashes is started again and the service stays.
[Unit]
Requires=` + proxy + `
After=` + proxy + `
`
	if o.Mode != Transparent {
		return text
	}
	inbound := " --proxy-inbound-port 0"
	if o.Port != 0 {
		inbound = " --inbound-scope services --service-port " + strconv.Itoa(o.Port)
	}
	return text + `
[Service]
ExecStartPre=+` + o.Binary + ` redirect apply --workload ` + o.ServiceID + `,cgroup=` + o.Slice + `/%n,port=15001 --proxy-uid ` + o.User +
		inbound + ` --consul-dns-port 15053 --ready-url http://127.0.0.1:15021/ready
ExecStopPost=+` + o.Binary + ` redirect clean
`
}
