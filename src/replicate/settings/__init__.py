"""What can be set, section by section: each parameter is declared once, in the section that configures its user."""
