"""What clients ask before they sync: status.php, OCS and Graph documents, well-known addresses."""
