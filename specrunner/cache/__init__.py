"""What earlier runs found out, kept by content: captures, and the verdicts that were drawn from them.

Nothing is looked up by name or by time. The key of a capture is a digest of everything that its numbers come from
(`stamps`), so what could have changed is asked again, and what a change cannot have touched is not.
"""
