"""Process groups, and the process-wide settings that must be made before there is one."""
