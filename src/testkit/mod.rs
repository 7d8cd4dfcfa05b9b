//! A simulated Monolith and a simulated client, with handles that drive them: for tests, examples and the demo.
