"""The doctor's tests, a module a chapter, from the bottom of the stack to its top."""
