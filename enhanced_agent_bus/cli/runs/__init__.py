"""`eab run`: an application opened, fed with lines to the end or served until a signal, and summed up."""
