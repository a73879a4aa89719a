// Package netns holds what only kernels' network stacks can show: peers that
// vanish, readers that pause, captured DNS. Its tests make pairs of Linux network namespaces,
// joined by a veth, and use the kernel's own timers in real time; they need root
// and iproute2.
package netns
