"""One function per figure: tables or arrays in, a matplotlib Figure out; nothing touches pyplot's state."""
