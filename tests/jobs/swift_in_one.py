"""Swift's four servers in one process, so that they start in seconds: `python swift_in_one.py CONF USER PORT`.

Writes the rings and configurations into CONF first. The port is the proxy's.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")

_STORAGE = """[DEFAULT]
swift_dir = {conf}
devices = {conf}/devices
mount_check = false
user = {user}
disable_fallocate = true
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""
_PROXY = """[DEFAULT]
swift_dir = {conf}
user = {user}
[pipeline:main]
pipeline = catch_errors cache listing_formats s3api tempauth bulk slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:1
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
s3_acl = false
location = us-east-1
force_swift_request_proxy_log = false
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
"""


def main(conf: Path, user: str, port: int) -> None:
    import eventlet

    eventlet.monkey_patch()
    (conf / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_suffix = a\nswift_hash_path_prefix = b\n[storage-policy:0]\nname = one\ndefault = yes\n"
    )
    from swift.common.utils import NullLogger, set_swift_dir

    set_swift_dir(str(conf))
    from swift.common.ring.builder import RingBuilder

    sockets: dict[str, Any] = {}
    for kind in ("account", "container", "object"):
        sockets[kind] = eventlet.listen(("127.0.0.1", 0))
        builder = RingBuilder(2, 1, 0)
        address = {"ip": "127.0.0.1", "port": sockets[kind].getsockname()[1]}
        device = {"region": 1, "zone": 1, "device": "d1", "weight": 1, "meta": "", **address}
        builder.add_dev({**device, "replication_ip": "127.0.0.1", "replication_port": address["port"]})
        builder.rebalance()
        builder.get_ring().save(str(conf / f"{kind}.ring.gz"))
        (conf / f"{kind}-server.conf").write_text(_STORAGE.format(kind=kind, conf=conf, user=user))
    (conf / "proxy-server.conf").write_text(_PROXY.format(conf=conf, user=user))
    sockets["proxy"] = eventlet.listen(("127.0.0.1", port), backlog=128)
    from swift.common.wsgi import SwiftHttpProtocol, loadapp

    for kind, sock in sockets.items():
        app = loadapp(str(conf / f"{kind}-server.conf"), global_conf={"log_name": kind})
        eventlet.spawn(eventlet.wsgi.server, sock, app, NullLogger(), protocol=SwiftHttpProtocol, capitalize_response_headers=False, keepalive=True)
    while True:
        eventlet.sleep(3600)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
