"""What only `tidewire demo` has: a primary model that can be broken, nodes that can be killed, devices by a link."""
