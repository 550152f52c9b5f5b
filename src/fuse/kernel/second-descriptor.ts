/**
 * Another descriptor for a mount's requests, that does not block: for a worker that has requests in its hands and would take more if there
 * are any. The descriptor that all workers share must block, because the kernel wakes one of those who sleep in read(2), but all of those
 * who poll.
 */
import * as fs from 'node:fs';
import { logOf } from '../../log';
import { ioctl } from '../../system/ioctl';
import { lastError } from '../../system/libc';
import { FUSE_DEVICE } from '../preconditions';

const log = logOf('fuse:kernel');

/** linux/fuse.h: _IOR(229, 0, uint32_t) */
const FUSE_DEV_IOC_CLONE = 0x8004e500;

/**
 * A request that was read here must be answered here. Needs Linux 4.2.
 * @param fd of the mount
 * @returns undefined where it cannot be had: by a user who may not open the device, as where fusermount3 opened it
 */
export function openSecond(fd: number): number | undefined {
  let second: number | undefined;
  try {
    second = fs.openSync(FUSE_DEVICE, fs.constants.O_RDWR | fs.constants.O_NONBLOCK);
    const argument = Buffer.alloc(4);
    argument.writeUInt32LE(fd);
    if (ioctl(second, FUSE_DEV_IOC_CLONE, argument) < 0) throw lastError('ioctl FUSE_DEV_IOC_CLONE');
    return second;
  } catch (error) {
    if (second !== undefined) fs.closeSync(second);
    log('one request at a time: %s', error);
    return undefined;
  }
}
