"""Privacy tests T1 to T6 and T8 of the real client, by real messages."""
