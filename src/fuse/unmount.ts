/** Taking a mount down, the same for both sessions. The callers see to it that what is mounted there is theirs. */
import { BlockError, errnoNameOf, hostError } from '../errors';
import { umount, umountAsync } from '../system/mount';
import { fusermountDetach, fusermountUnmount } from './fusermount';
import { isRoot } from './preconditions';

export interface UnmountOptions {
  /** Out of the tree at once although it is in use; its users keep their open files until they close them. */
  lazy: boolean;
}

/**
 * Unmounts what lies on top at `mountpoint` (absolute, symbolic links resolved). While this waits, requests are still served: unmounting
 * writes back what a shared mapping has changed.
 * Throws BUSY when it is in use, NOT_FOUND when nothing is mounted there, DENIED.
 */
export async function unmount(mountpoint: string, { lazy }: UnmountOptions): Promise<void> {
  const action = `Cannot unmount "${mountpoint}"`;
  if (!isRoot()) return fusermountUnmount(mountpoint, lazy, action);
  try {
    await umountAsync(mountpoint, { lazy });
  } catch (error) {
    throw unmountError(error, action, mountpoint);
  }
}

/**
 * For emergencies, when requests will not be answered any more: takes the mount out of the tree before it returns. As root, requests
 * in flight fail at once; else they fail when this process ends and its descriptor with it.
 * Throws as `unmount` does.
 */
export function abandon(mountpoint: string): void {
  const action = `Cannot unmount "${mountpoint}"`;
  if (!isRoot()) {
    fusermountDetach(mountpoint, action);
    return;
  }
  try {
    // By force first: with dirty pages the kernel would otherwise write them back through this very process, on this very thread.
    umount(mountpoint, { lazy: true, force: true });
  } catch (error) {
    throw unmountError(error, action, mountpoint);
  }
}

function unmountError(error: unknown, action: string, mountpoint: string): BlockError {
  const context = { path: mountpoint, cause: error };
  switch (errnoNameOf(error)) {
    case 'EBUSY':
      return new BlockError('BUSY', `${action}: it is in use`, context);
    case 'EINVAL':
      return new BlockError('NOT_FOUND', `${action}: nothing is mounted there`, context);
    default:
      return hostError(error, action, context);
  }
}
