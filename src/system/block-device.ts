/** ioctls of block devices (linux/fs.h). */
import { ioctl } from './ioctl';
import { interrupted } from './libc';

const BLKGETSIZE64 = 0x80081272;
const BLKDISCARD = 0x1277;
const BLKZEROOUT = 0x127f;

/** Two u64, both ioctls on ranges take start and length in bytes. Each thread has its own: modules are loaded once a thread. */
const range = Buffer.alloc(16);
const size = Buffer.alloc(8);

/** Capacity in bytes. Throws ENOTTY when `fd` is no block device. */
export function blockDeviceSize(fd: number): number {
  while (interrupted(ioctl(fd, BLKGETSIZE64, size), 'ioctl BLKGETSIZE64'));
  return Number(size.readBigUInt64LE(0));
}

/** The content is no longer needed; what the range reads afterwards depends on the device. Both numbers are multiples of the sector. */
export function discardRange(fd: number, offset: number, length: number): void {
  rangeCommand(fd, BLKDISCARD, 'ioctl BLKDISCARD', offset, length);
}

/** The range reads zero afterwards; the device unmaps where it can. Both numbers are multiples of the sector. */
export function zeroRange(fd: number, offset: number, length: number): void {
  rangeCommand(fd, BLKZEROOUT, 'ioctl BLKZEROOUT', offset, length);
}

function rangeCommand(fd: number, request: number, name: string, offset: number, length: number): void {
  range.writeBigUInt64LE(BigInt(offset), 0);
  range.writeBigUInt64LE(BigInt(length), 8);
  while (interrupted(ioctl(fd, request, range), name));
}
