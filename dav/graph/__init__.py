"""The Graph API as ownCloud and OpenCloud speak it (libregraph): drives, their files and folders, tags."""
