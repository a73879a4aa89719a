// Package compose is the shop as a docker-compose project, and its tests:
// shop.yaml knows of no mesh, docker-compose.yaml is what `parrel inject` makes of
// it, the command check proves that it holds. Read README.md first.
package compose
