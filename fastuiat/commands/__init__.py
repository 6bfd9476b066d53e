"""What `fastuiat COMMAND` does, a file each: options, calls, what is printed."""
