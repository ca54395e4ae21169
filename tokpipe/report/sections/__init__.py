"""The sections of a report: each is a function from the facts to markup."""
