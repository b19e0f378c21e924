package deliver

import "errors"

func newMaildir(path string, o Options) (Transport, error)  { return nil, errors.New("stub") }
func newSendmail(path string, o Options) (Transport, error) { return nil, errors.New("stub") }
func newPipe(path string, o Options) (Transport, error)     { return nil, errors.New("stub") }
