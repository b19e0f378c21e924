//go:build !linux

package bridge

// kernelSynced is unknown here: only peers and people can clear a suspicion.
func kernelSynced() bool { return false }
