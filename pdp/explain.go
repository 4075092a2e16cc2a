package main

func (s *server) explain(r request) (any, error) { return nil, &failure{Code: "failed", Message: "x"} }
