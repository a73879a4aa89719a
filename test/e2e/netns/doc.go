// Package netns holds what only two kernels' network stacks can show: peers that
// vanish, readers that pause. Its tests make pairs of Linux network namespaces,
// joined by a veth, and use the kernel's own timers in real time; they need root
// and iproute2.
package netns
