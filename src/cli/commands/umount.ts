/** `imagefs umount`: returns 0 only when everything is on disk, locks are released and the daemon has gone. */

import { isDead } from '../../daemon/checks';
import { busyMessage } from '../../daemon/holders';
import { readLastWords } from '../../daemon/last-words';
import { MOUNT_TYPE, type MountEntry, MountTable, ownerOf, tablePath } from '../../daemon/mountinfo';
import { daemonOf, findDaemons, openLastWords } from '../../daemon/processes';
import { BlockError } from '../../errors';
import { unmount } from '../../fuse/unmount';
import { waitForExit } from '../../system/process';
import { parseWords } from '../args';
import { type Command, UsageError } from '../command';
import { printError } from '../output';

const HELP = `Usage: imagefs umount [OPTION]... MOUNTPOINT...

Unmounts. When it returns 0, everything is on disk, the images are marked as cleanly closed,
their locks are released and the daemon has gone. A mount in use is left as it is, and whoever
uses it is named. A dead mount is detached.

  -l, --lazy    detach a mount in use now; its daemon goes on until the last user lets go
  -w, --wait    wait until a mount in use is let go

Exit code: 0 unmounted, 1 still mounted or the last flush failed, 2 wrong usage.

Example: imagefs umount /mnt/vm`;

/** A stat(2) that is on its way, of a file manager or of the command that mounted, keeps a mount busy too: such looks are waited for. */
const PASSING_LOOKS = 5;
const PASSING_LOOK_MS = 40;
/** Pause between two attempts with --wait: nobody tells when a file is closed. */
const RETRY_MS = 200;
/** After this long the wait for a daemon is explained. */
const PATIENCE_MS = 5000;

interface Options {
  lazy: boolean;
  wait: boolean;
}

type Say = (message: string) => void;

async function run(args: string[]): Promise<number> {
  const { options, mountpoints } = parse(args);
  let failed = false;
  const say: Say = (message) => printError(`imagefs: ${message}`);
  for (const mountpoint of mountpoints) {
    try {
      await umountOne(mountpoint, options, say);
    } catch (error) {
      if (!(error instanceof BlockError)) throw error;
      say(error.message);
      failed = true;
    }
  }
  return failed ? 1 : 0;
}

function parse(args: string[]): { options: Options; mountpoints: string[] } {
  const { values, positionals } = parseWords(args, {
    lazy: { type: 'boolean', short: 'l' },
    wait: { type: 'boolean', short: 'w' },
  });
  if (positionals.length === 0) throw new UsageError('Name the mountpoint: imagefs umount MOUNTPOINT');
  return { options: { lazy: values.lazy ?? false, wait: values.wait ?? false }, mountpoints: positionals };
}

async function umountOne(named: string, options: Options, say: Say): Promise<void> {
  const entry = findMount(named);
  const daemon = daemonOf(entry, findDaemons());
  if (daemon === undefined && isDead(entry.mountpoint)) {
    await unmount(entry.mountpoint, { lazy: true });
    say(`Detached a dead mount at "${named}"`);
    return;
  }
  if (daemon === undefined) {
    await letGo(entry, options, say);
    throw new BlockError(
      'IO',
      `Unmounted "${named}", but its daemon cannot be seen: whether it has finished is unknown`,
    );
  }
  // Opened before unmounting: afterwards the daemon may be gone at any moment.
  const words = openLastWords(daemon.pid);
  await letGo(entry, options, say);
  if (options.lazy && !options.wait && !(await waitForExit(daemon.pid, RETRY_MS))) {
    say(`Detached "${named}"; the daemon (pid ${daemon.pid}) ends when the last user lets go`);
    return;
  }
  await waitForDaemon(daemon.pid, named, say);
  const problems =
    words === undefined ? ['its daemon cannot be asked whether everything was written'] : readLastWords(words);
  if (problems.length > 0) {
    throw new BlockError('IO', `Unmounted "${named}", but ${problems.join('; ')}`, { path: named });
  }
}

/** Our mount at that place, which this user may unmount. */
function findMount(named: string): MountEntry {
  const table = MountTable.read();
  const entry = table.find(tablePath(named, table));
  if (entry === undefined) {
    throw new BlockError(
      'NOT_FOUND',
      `Cannot unmount "${named}": nothing is mounted there; imagefs list shows all mounts`,
      {
        path: named,
      },
    );
  }
  if (entry.type !== MOUNT_TYPE) {
    throw new BlockError(
      'DENIED',
      `Cannot unmount "${named}": it is a ${entry.type} mount, not one of imagefs; use umount`,
      {
        path: named,
      },
    );
  }
  const uid = process.getuid?.();
  const owner = ownerOf(entry);
  if (uid !== 0 && owner !== uid) {
    throw new BlockError(
      'DENIED',
      `Cannot unmount "${named}": it was mounted by user ${owner}; only that user and root may`,
      {
        path: named,
      },
    );
  }
  return entry;
}

/** Unmounts, or throws BUSY with the names of those who use the mount. */
async function letGo(entry: MountEntry, options: Options, say: Say): Promise<void> {
  let said = false;
  for (let attempt = 0; ; attempt++) {
    try {
      return await unmount(entry.mountpoint, { lazy: options.lazy });
    } catch (error) {
      if (!(error instanceof BlockError) || error.code !== 'BUSY') throw error;
      if (attempt < PASSING_LOOKS) {
        await new Promise((resolve) => setTimeout(resolve, PASSING_LOOK_MS));
        continue;
      }
      const message = busyMessage(entry, MountTable.read());
      if (!options.wait) throw new BlockError('BUSY', message, { path: entry.mountpoint, cause: error });
      if (!said) say(`${message}; waiting`);
      said = true;
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
}

async function waitForDaemon(pid: number, named: string, say: Say): Promise<void> {
  if (await waitForExit(pid, PATIENCE_MS)) return;
  say(`"${named}" is unmounted; waiting until the daemon (pid ${pid}) has written everything`);
  while (!(await waitForExit(pid, PATIENCE_MS)));
}

export const command: Command = {
  name: 'umount',
  summary: 'Unmount, and return when everything is on disk',
  help: HELP,
  run,
};
