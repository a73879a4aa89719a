// Package intercept holds what only a kernel can show of redirection: who is
// captured and who is not, beside whose rules, and what is left afterwards. Its
// tests make hosts of Linux network namespaces joined by a veth; a program that
// says where a connection wanted to go stands for the sidecar. They need root,
// iproute2, nft and iptables; the product needs none of them.
package intercept
