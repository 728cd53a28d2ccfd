"""Who runs what, where and when: devices, threads, interactive sessions."""
