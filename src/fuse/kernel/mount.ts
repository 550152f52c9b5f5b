/**
 * Mounting for the kernel session: the result is a descriptor of /dev/fuse from which the worker threads read requests. The mount is in
 * the tree when this returns; the kernel lets its users wait until the first worker has answered INIT.
 */
import * as fs from 'node:fs';
import { BlockError, errnoNameOf, hostError } from '../../errors';
import { isMountFlag, mount } from '../../system/mount';
import { fusermountMount } from '../fusermount';
import {
  absolute,
  checkDevice,
  checkMountpoint,
  deviceError,
  escapeOption,
  FUSE_DEVICE,
  isRoot,
  mountAction,
} from '../preconditions';
import { MAX_REQUEST, type MountOptions } from '../session';

/** /proc/mounts shows `fuse.imagefs`. */
const SUBTYPE = 'imagefs';

/**
 * Mounts at `options.mountpoint`, an existing directory, and returns the descriptor for `serveKernel`. The caller closes it.
 * Throws a BlockError of one line; nothing is left mounted then.
 */
export function mountKernel(options: MountOptions): number {
  const mountpoint = absolute(options.mountpoint);
  checkFlags(options.flags, mountpoint);
  checkMountpoint(mountpoint);
  return isRoot() ? mountAsRoot(mountpoint, options) : mountAsUser(mountpoint, options);
}

function checkFlags(flags: readonly string[], mountpoint: string): void {
  const unknown = flags.find((flag) => !isMountFlag(flag));
  if (unknown === undefined) return;
  throw new BlockError('UNSUPPORTED_FEATURE', `${mountAction(mountpoint)}: unknown mount option "${unknown}"`);
}

/** What both ways pass to the kernel. Access is checked by the kernel, from mode, owner and group. */
function fuseOptions({ allowOther }: MountOptions): string[] {
  return ['default_permissions', ...(allowOther ? ['allow_other'] : []), `max_read=${MAX_REQUEST}`];
}

function mountFlags({ readOnly, flags }: MountOptions): string[] {
  return ['nosuid', 'nodev', ...flags, readOnly ? 'ro' : 'rw'];
}

function mountAsRoot(mountpoint: string, options: MountOptions): number {
  const fd = openDevice(mountpoint);
  try {
    const owner = `user_id=${process.geteuid?.() ?? 0},group_id=${process.getegid?.() ?? 0}`;
    // The kernel wants the file type of the root, in octal: S_IFDIR.
    const data = [`fd=${fd}`, 'rootmode=40000', owner, ...fuseOptions(options)].join(',');
    mount(options.source, mountpoint, `fuse.${SUBTYPE}`, mountFlags(options), data);
    return fd;
  } catch (error) {
    fs.closeSync(fd);
    throw mountError(error, mountpoint);
  }
}

function openDevice(mountpoint: string): number {
  try {
    return fs.openSync(FUSE_DEVICE, 'r+');
  } catch (error) {
    throw deviceError(error, mountpoint);
  }
}

function mountError(error: unknown, mountpoint: string): BlockError {
  const action = mountAction(mountpoint);
  const context = { path: mountpoint, cause: error };
  switch (errnoNameOf(error)) {
    case 'EPERM':
    case 'EACCES':
      return new BlockError(
        'DENIED',
        `${action}: mount(2) is not permitted here; start the container with --cap-add SYS_ADMIN (and, on Ubuntu, --security-opt apparmor:unconfined)`,
        context,
      );
    case 'ENODEV':
      return deviceError(error, mountpoint);
    default:
      return hostError(error, action, context);
  }
}

function mountAsUser(mountpoint: string, options: MountOptions): number {
  // fusermount3 opens the device with the rights of its caller, and says no more than that it could not.
  checkDevice(mountpoint);
  const words = [
    ...mountFlags(options),
    `fsname=${escapeOption(options.source)}`,
    `subtype=${SUBTYPE}`,
    ...fuseOptions(options),
  ];
  return fusermountMount(mountpoint, words.join(','));
}
