"""Who may: callers told apart by token, JWT or unix peer, and what each of them is granted."""
