// Package e2e has no code, only tests of whole nodes: a daemon in this process or in one of its own, real mail servers
// around it, real folders, connections and disks between two of them.
//
// The counts are small by default; MOCHILA_SOAK=1 makes them what `make soak` wants. Everything random comes from a seed
// that is printed, and that MOCHILA_SEED sets.
package e2e
