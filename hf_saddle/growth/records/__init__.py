"""What plans, events and histories say: data that is checked, written and read again."""
