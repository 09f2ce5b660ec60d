"""When growing by curvature pays: experiments as a table, a resumable runner, and a report with intervals."""
