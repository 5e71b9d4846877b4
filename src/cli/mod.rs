//! The door: what the user asked. One file a subcommand; it sees all rooms.
