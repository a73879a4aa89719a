package discovery

// CanonicalRegistration checks what a user wrote as `service { … }` as
// [DecodeRegistration] does, and gives it in the names and types of Consul's
// API. The error is a *[FieldError].
func CanonicalRegistration(fields map[string]any, origin Origin) (map[string]any, error) {
	if _, err := DecodeRegistration(fields, Node{}, origin); err != nil {
		return nil, err
	}
	c := &canonicaliser{origin: origin}
	body, head := map[string]any{}, map[string]any{}
	for k, v := range fields {
		switch fold(k) {
		case "name":
			head["Name"] = v
		case "kind":
			head["Kind"] = v
		default:
			body[k] = v
		}
	}
	out, err := c.object(schemas()[registrationKind], body, "", "")
	if err != nil {
		return nil, err
	}
	for k, v := range head {
		out[k] = v
	}
	return out, nil
}
