"""The WebSocket edge: one actor per connection."""
