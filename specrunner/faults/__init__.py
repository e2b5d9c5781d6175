"""The planted bugs of `specrunner prove`: what each is. `engines.planters` puts them into live engines."""
