"""OpenSSH server: keys only, modern algorithms, and a change that locks everybody out undoes itself."""
