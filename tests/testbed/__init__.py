"""What tests on real hosts stand on."""
