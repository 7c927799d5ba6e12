"""Working fakes shared by the tests: clocks, brokers, recorders."""
