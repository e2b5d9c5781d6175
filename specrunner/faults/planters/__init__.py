"""How faults get into live engines: a module an engine, each with `PLANTERS`, context managers by the fault's name."""
