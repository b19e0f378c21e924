package transport

// Opening is how many packets are read while they come.
func (p *Partials) Opening() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.opening
}
