"""To whom? Who is registered, and which of them a message is for."""
