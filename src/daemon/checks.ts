/**
 * What must be true before anything is mounted. Every failure is one line that says what to do, and leaves everything as it was.
 */
import fs from 'node:fs';
import path from 'node:path';
import { BlockError, errnoNameOf, hostError } from '../errors';
import { unmount } from '../fuse/unmount';
import { isInside, MOUNT_TYPE, type MountEntry, MountTable, tablePath } from './mountinfo';
import { daemonOf, findDaemons } from './processes';

/**
 * The mountpoint with symbolic links resolved: an empty directory that nobody uses. A dead mount of ours there is detached
 * first, and `say` hears of it.
 */
export async function checkMountpoint(named: string, say: (message: string) => void): Promise<string> {
  const table = MountTable.read();
  const mountpoint = tablePath(named, table);
  const entry = table.find(mountpoint);
  if (entry?.type === MOUNT_TYPE) {
    refuseLiveMount(entry, named);
    await unmount(mountpoint, { lazy: true });
    say(`Detached a dead mount at "${named}"`);
    return checkMountpoint(mountpoint, say);
  }
  const action = `Cannot mount at "${named}"`;
  const stat = statOrThrow(mountpoint, action);
  if (!stat.isDirectory()) {
    throw new BlockError('INVALID_FORMAT', `${action}: it is not a directory; name an empty directory`, {
      path: named,
    });
  }
  return fs.realpathSync(mountpoint);
}

/** Throws when the mount of ours at the mountpoint is alive. Returns when its daemon has died. */
function refuseLiveMount(entry: MountEntry, named: string): void {
  const daemon = daemonOf(entry, findDaemons());
  const action = `Cannot mount at "${named}"`;
  if (daemon === undefined && isDead(entry.mountpoint)) return;
  const served = daemon === undefined ? '' : ` (pid ${daemon.pid})`;
  throw new BlockError(
    'BUSY',
    `${action}: it is already a mount of imagefs${served}; unmount it first with imagefs umount`,
    {
      path: named,
    },
  );
}

/** A mount whose daemon has gone answers ENOTCONN, and at once. Asked by statfs(2): what stat(2) tells may be remembered from before. */
export function isDead(mountpoint: string): boolean {
  try {
    fs.statfsSync(mountpoint);
    return false;
  } catch (error) {
    return errnoNameOf(error) === 'ENOTCONN' || errnoNameOf(error) === 'ECONNABORTED';
  }
}

/** Refuses a mountpoint that holds something, or from which the daemon would read its own mount: that blocks for ever. */
export function checkEmpty(mountpoint: string, named: string): void {
  const action = `Cannot mount at "${named}"`;
  let entries: string[];
  try {
    entries = fs.readdirSync(mountpoint);
  } catch (error) {
    throw hostError(error, action, { path: named });
  }
  if (entries.length > 0) {
    throw new BlockError(
      'BUSY',
      `${action}: the directory is not empty (it holds "${entries[0]}"); name an empty one`,
      {
        path: named,
      },
    );
  }
}

/** @param image an image or a directory of images, as the user named it */
export function checkOverlap(image: string, mountpoint: string, namedMountpoint: string): void {
  const real = fs.realpathSync(image);
  const action = `Cannot mount "${image}" at "${namedMountpoint}"`;
  if (real === mountpoint) {
    throw new BlockError('BUSY', `${action}: image and mountpoint are the same; name another directory`, {
      path: image,
    });
  }
  if (isInside(real, mountpoint)) {
    throw new BlockError('BUSY', `${action}: the image lies inside the mountpoint; name another directory`, {
      path: image,
    });
  }
  if (fs.statSync(real).isDirectory() && isInside(mountpoint, real)) {
    throw new BlockError('BUSY', `${action}: the mountpoint lies inside that directory; name one outside`, {
      path: image,
    });
  }
}

function statOrThrow(file: string, action: string): fs.Stats {
  try {
    return fs.statSync(file);
  } catch (error) {
    if (errnoNameOf(error) === 'ENOENT') {
      throw new BlockError('NOT_FOUND', `${action}: no such directory; create it with mkdir`, {
        path: file,
        cause: error,
      });
    }
    if (errnoNameOf(error) === 'ENOTCONN') {
      throw new BlockError(
        'BUSY',
        `${action}: a dead mount of another program lies there; detach it with fusermount3 -uz`,
        {
          path: file,
          cause: error,
        },
      );
    }
    throw hostError(error, action, { path: path.resolve(file) });
  }
}
