# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers of the kernel's user API, with their names, from the headers named. No imports: the worker loads this too."""

# linux/nbd.h: _IO(0xab, n)
NBD_SET_SOCK = 0xAB00
NBD_SET_BLKSIZE = 0xAB01
NBD_SET_SIZE = 0xAB02
NBD_DO_IT = 0xAB03
NBD_CLEAR_SOCK = 0xAB04
NBD_CLEAR_QUE = 0xAB05
NBD_PRINT_DEBUG = 0xAB06
NBD_SET_SIZE_BLOCKS = 0xAB07
NBD_DISCONNECT = 0xAB08
NBD_SET_TIMEOUT = 0xAB09
NBD_SET_FLAGS = 0xAB0A

# linux/fs.h: _IO(0x12, n)
BLKROSET = 0x125D
BLKRRPART = 0x125F
BLKRASET = 0x1262
BLKRAGET = 0x1263
