"""What each command of `workspaced` does, apart from reading its flags."""
