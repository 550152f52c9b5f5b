/** What must be true before a mount is tried, each with one line that says what to do when it is not. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { BlockError, errnoNameOf, hostError } from '../errors';
import type { MountOptions } from './session';

export const FUSE_DEVICE = '/dev/fuse';
const FUSE_CONFIGURATION = '/etc/fuse.conf';

/** `Cannot mount at "/mnt/vm"` */
export function mountAction(mountpoint: string): string {
  return `Cannot mount at "${mountpoint}"`;
}

export const ALLOW_OTHER_HINT = `the option allow_other needs a line "user_allow_other" in ${FUSE_CONFIGURATION}`;

/** Root mounts with mount(2), everybody else through the setuid program fusermount3. */
export function isRoot(): boolean {
  return process.geteuid?.() === 0;
}

export function checkMountpoint(mountpoint: string): void {
  const action = mountAction(mountpoint);
  let isDirectory: boolean;
  try {
    isDirectory = fs.statSync(mountpoint).isDirectory();
  } catch (error) {
    if (errnoNameOf(error) === 'ENOTCONN') {
      const message = `${action}: a dead mount is there; detach it with "umount -l" or "fusermount3 -u -z"`;
      throw new BlockError('BUSY', message, { path: mountpoint, cause: error });
    }
    throw hostError(error, action, { path: mountpoint });
  }
  if (!isDirectory) throw new BlockError('INVALID_FORMAT', `${action}: it is not a directory`, { path: mountpoint });
}

/** @param error of opening /dev/fuse */
export function deviceError(error: unknown, mountpoint: string): BlockError {
  const action = mountAction(mountpoint);
  const context = { path: FUSE_DEVICE, cause: error };
  switch (errnoNameOf(error)) {
    case 'ENOENT':
    case 'ENODEV':
    case 'ENXIO':
      return new BlockError(
        'NOT_FOUND',
        `${action}: there is no ${FUSE_DEVICE}; load the kernel module with "modprobe fuse", or start the container with --device ${FUSE_DEVICE}`,
        context,
      );
    case 'EACCES':
      return new BlockError(
        'DENIED',
        `${action}: no permission for ${FUSE_DEVICE}; as root run "chmod 0666 ${FUSE_DEVICE}", as distributions do`,
        context,
      );
    case 'EPERM':
      return new BlockError(
        'DENIED',
        `${action}: ${FUSE_DEVICE} is not permitted here; start the container with --device ${FUSE_DEVICE} --cap-add SYS_ADMIN`,
        context,
      );
    default:
      return hostError(error, `${action}: cannot open ${FUSE_DEVICE}`, context);
  }
}

/** For whoever does not open the device himself but has a library or program do it. */
export function checkDevice(mountpoint: string): void {
  try {
    fs.closeSync(fs.openSync(FUSE_DEVICE, 'r+'));
  } catch (error) {
    throw deviceError(error, mountpoint);
  }
}

/** `user_allow_other` may stand anywhere in the file, on a line of its own. */
export function checkAllowOther(options: MountOptions): void {
  if (!options.allowOther || isRoot()) return;
  let lines: string[] = [];
  try {
    lines = fs.readFileSync(FUSE_CONFIGURATION, 'utf8').split('\n');
  } catch {
    // Without the file nothing is allowed.
  }
  if (lines.some((line) => line.trim() === 'user_allow_other')) return;
  throw new BlockError('DENIED', `${mountAction(options.mountpoint)}: ${ALLOW_OTHER_HINT}`, {
    path: FUSE_CONFIGURATION,
  });
}

/** An option's value: commas and backslashes would end it or quote what follows. */
export function escapeOption(value: string): string {
  return value.replace(/[\\,]/g, '\\$&');
}

/** mount(2) and libfuse resolve nothing: relative paths end here. */
export function absolute(mountpoint: string): string {
  return path.resolve(mountpoint);
}
