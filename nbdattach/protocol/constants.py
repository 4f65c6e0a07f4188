# SPDX-License-Identifier: GPL-2.0-or-later
"""Constants of the NBD protocol, with the names and in the order of its specification.

Source: the NBD specification, doc/proto.md, sections "Values" and "Protocol phases".
This file holds numbers only; `handshake` and `transmission` use them.
"""

from __future__ import annotations

from typing import Final

# Magic numbers (64 bits unless said)
NBDMAGIC: Final = 0x4E42444D41474943
IHAVEOPT: Final = 0x49484156454F5054
OLDSTYLE_MAGIC: Final = 0x00420281861253
REPLY_MAGIC: Final = 0x3E889045565A9
NBD_REQUEST_MAGIC: Final = 0x25609513  # 32 bits
NBD_SIMPLE_REPLY_MAGIC: Final = 0x67446698  # 32 bits

# Handshake flags (16 bits)
NBD_FLAG_FIXED_NEWSTYLE: Final = 1 << 0
NBD_FLAG_NO_ZEROES: Final = 1 << 1

# Client flags (32 bits)
NBD_FLAG_C_FIXED_NEWSTYLE: Final = 1 << 0
NBD_FLAG_C_NO_ZEROES: Final = 1 << 1

# Transmission flags (16 bits)
NBD_FLAG_HAS_FLAGS: Final = 1 << 0
NBD_FLAG_READ_ONLY: Final = 1 << 1
NBD_FLAG_SEND_FLUSH: Final = 1 << 2
NBD_FLAG_SEND_FUA: Final = 1 << 3
NBD_FLAG_ROTATIONAL: Final = 1 << 4
NBD_FLAG_SEND_TRIM: Final = 1 << 5
NBD_FLAG_SEND_WRITE_ZEROES: Final = 1 << 6
NBD_FLAG_CAN_MULTI_CONN: Final = 1 << 8

TRANSMISSION_FLAGS: Final = {
    0: "has_flags",
    1: "read_only",
    2: "send_flush",
    3: "send_fua",
    4: "rotational",
    5: "send_trim",
    6: "send_write_zeroes",
    7: "send_df",
    8: "can_multi_conn",
    9: "send_resize",
    10: "send_cache",
    11: "send_fast_zero",
    12: "block_status_payload",
}

# Option types
NBD_OPT_EXPORT_NAME: Final = 1
NBD_OPT_ABORT: Final = 2
NBD_OPT_LIST: Final = 3
NBD_OPT_STARTTLS: Final = 5
NBD_OPT_INFO: Final = 6
NBD_OPT_GO: Final = 7

OPTION_NAMES: Final = {
    NBD_OPT_EXPORT_NAME: "NBD_OPT_EXPORT_NAME",
    NBD_OPT_ABORT: "NBD_OPT_ABORT",
    NBD_OPT_LIST: "NBD_OPT_LIST",
    NBD_OPT_STARTTLS: "NBD_OPT_STARTTLS",
    NBD_OPT_INFO: "NBD_OPT_INFO",
    NBD_OPT_GO: "NBD_OPT_GO",
}

# Option reply types
NBD_REP_ACK: Final = 1
NBD_REP_SERVER: Final = 2
NBD_REP_INFO: Final = 3
NBD_REP_FLAG_ERROR: Final = 1 << 31
NBD_REP_ERR_UNSUP: Final = NBD_REP_FLAG_ERROR + 1
NBD_REP_ERR_POLICY: Final = NBD_REP_FLAG_ERROR + 2
NBD_REP_ERR_INVALID: Final = NBD_REP_FLAG_ERROR + 3
NBD_REP_ERR_PLATFORM: Final = NBD_REP_FLAG_ERROR + 4
NBD_REP_ERR_TLS_REQD: Final = NBD_REP_FLAG_ERROR + 5
NBD_REP_ERR_UNKNOWN: Final = NBD_REP_FLAG_ERROR + 6
NBD_REP_ERR_SHUTDOWN: Final = NBD_REP_FLAG_ERROR + 7
NBD_REP_ERR_BLOCK_SIZE_REQD: Final = NBD_REP_FLAG_ERROR + 8
NBD_REP_ERR_TOO_BIG: Final = NBD_REP_FLAG_ERROR + 9

REPLY_NAMES: Final = {
    NBD_REP_ACK: "NBD_REP_ACK",
    NBD_REP_SERVER: "NBD_REP_SERVER",
    NBD_REP_INFO: "NBD_REP_INFO",
    NBD_REP_ERR_UNSUP: "NBD_REP_ERR_UNSUP",
    NBD_REP_ERR_POLICY: "NBD_REP_ERR_POLICY",
    NBD_REP_ERR_INVALID: "NBD_REP_ERR_INVALID",
    NBD_REP_ERR_PLATFORM: "NBD_REP_ERR_PLATFORM",
    NBD_REP_ERR_TLS_REQD: "NBD_REP_ERR_TLS_REQD",
    NBD_REP_ERR_UNKNOWN: "NBD_REP_ERR_UNKNOWN",
    NBD_REP_ERR_SHUTDOWN: "NBD_REP_ERR_SHUTDOWN",
    NBD_REP_ERR_BLOCK_SIZE_REQD: "NBD_REP_ERR_BLOCK_SIZE_REQD",
    NBD_REP_ERR_TOO_BIG: "NBD_REP_ERR_TOO_BIG",
}

# Information types of NBD_REP_INFO
NBD_INFO_EXPORT: Final = 0
NBD_INFO_NAME: Final = 1
NBD_INFO_DESCRIPTION: Final = 2
NBD_INFO_BLOCK_SIZE: Final = 3

# Request types
NBD_CMD_READ: Final = 0
NBD_CMD_DISC: Final = 2

# Error values of the transmission phase; any other one counts as NBD_EINVAL
NBD_EINVAL: Final = 22
NBD_ESHUTDOWN: Final = 108
NBD_ERRORS: Final = {
    1: "operation not permitted",
    5: "input/output error",
    12: "cannot allocate memory",
    22: "invalid argument",
    28: "no space left on device",
    75: "value too large",
    95: "operation not supported",
    NBD_ESHUTDOWN: "server is shutting down",
}

# Limit of every string in bytes (section "Conventions").
MAX_STRING: Final = 4096
DEFAULT_PORT: Final = 10809
