"""What a virtual network card leaves to its driver: `ethtool -K`, without ethtool."""

import array
import fcntl
import socket
import struct

_SIOCETHTOOL = 0x8946
_GSSET_INFO, _GSTRINGS, _SFEATURES = 0x37, 0x1B, 0x3B
_FEATURE_NAMES = 4
"""ETH_SS_FEATURES, the set of strings that names the features."""
_NAME_BYTES = 32


def set_features(control: socket.socket, device: str, features: dict[str, bool]) -> None:
    """Switches features of a network card on or off, as many as the kernel knows.

    Args:
        control: A socket of the network namespace.
        device: Name of the card.
        features: By name, as `ethtool -k` shows them.

    Raises:
        OSError: There is no such card.
    """
    names = _names(control, device)
    blocks = -(-len(names) // 32)
    valid, wanted = [0] * blocks, [0] * blocks
    for name, on in features.items():
        if name in names:
            block, bit = divmod(names.index(name), 32)
            valid[block] |= 1 << bit
            wanted[block] |= on << bit
    pairs = [word for pair in zip(valid, wanted, strict=True) for word in pair]
    _call(control, device, struct.pack(f"=II{len(pairs)}I", _SFEATURES, blocks, *pairs))


def _names(control: socket.socket, device: str) -> list[str]:
    info = _call(control, device, struct.pack("=IIQI", _GSSET_INFO, 0, 1 << _FEATURE_NAMES, 0))
    (count,) = struct.unpack_from("=I", info, 16)
    request = struct.pack("=III", _GSTRINGS, _FEATURE_NAMES, count) + bytes(count * _NAME_BYTES)
    names = _call(control, device, request)[12:]
    return [
        names[start : start + _NAME_BYTES].split(b"\0")[0].decode()
        for start in range(0, len(names), _NAME_BYTES)
    ]


def _call(control: socket.socket, device: str, request: bytes) -> bytes:
    data = array.array("B", request)
    address, _ = data.buffer_info()
    fcntl.ioctl(control, _SIOCETHTOOL, struct.pack("16sP", device.encode(), address))
    return data.tobytes()
