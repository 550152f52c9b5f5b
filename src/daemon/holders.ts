/**
 * Who keeps a mount busy: processes with open files, a working directory, a root or a mapping in it, loop devices over
 * its files, mounts and swap areas inside it. Everything comes from /proc and /sys by the names shown there; no request goes to the
 * mount itself, so the daemon may ask about its own mount.
 */
import fs from 'node:fs';
import path from 'node:path';
import { isInside, type MountEntry, MountTable } from './mountinfo';
import { processIds } from './processes';

export type Holder =
  | { kind: 'process'; pid: number; command: string; uses: string[] }
  | { kind: 'loop'; device: string; file: string; mountedAt: string[] }
  | { kind: 'mount'; mountpoint: string; type: string }
  | { kind: 'swap'; file: string };

/** Everybody who holds the mount, as far as this user may see. `self` is left out (the daemon's own process). */
export function findHolders(mount: MountEntry, table: MountTable = MountTable.read()): Holder[] {
  return [
    ...processIds()
      .filter((pid) => pid !== process.pid)
      .flatMap((pid) => processHolder(pid, mount)),
    ...loopHolders(mount.mountpoint, table),
    ...table
      .below(mount.mountpoint)
      .map((entry): Holder => ({ kind: 'mount', mountpoint: entry.mountpoint, type: entry.type })),
    ...swapHolders(mount.mountpoint),
  ];
}

/** What `imagefs umount` and a daemon with a signal say about a busy mount. */
export function busyMessage(entry: MountEntry, table: MountTable): string {
  const holders = findHolders(entry, table).map(describeHolder);
  const who = holders.length === 0 ? 'it is in use, by whom only root can see' : `in use by ${holders.join(', ')}`;
  return `Cannot unmount "${entry.mountpoint}": ${who}`;
}

/** `bash (pid 12: working directory)` */
export function describeHolder(holder: Holder): string {
  switch (holder.kind) {
    case 'process':
      return `${holder.command} (pid ${holder.pid}: ${holder.uses.join(', ')})`;
    case 'loop': {
      const where =
        holder.mountedAt.length === 0 ? '' : `, mounted at ${holder.mountedAt.map((at) => `"${at}"`).join(', ')}`;
      return `loop device ${holder.device} (over "${holder.file}"${where})`;
    }
    case 'mount':
      return `mount at "${holder.mountpoint}" (${holder.type})`;
    case 'swap':
      return `swap area "${holder.file}"`;
  }
}

function processHolder(pid: number, mount: MountEntry): Holder[] {
  const uses: string[] = [];
  const inside = (link: string): string | undefined => {
    const target = readLink(`/proc/${pid}/${link}`);
    return target !== undefined && isInside(target, mount.mountpoint) ? target : undefined;
  };
  if (inside('cwd') !== undefined) uses.push('working directory');
  if (inside('root') !== undefined) uses.push('root directory');
  if (inside('exe') !== undefined) uses.push('program');
  const files = new Set(listOf(`/proc/${pid}/fd`).map((fd) => inside(`fd/${fd}`)));
  for (const file of files) if (file !== undefined) uses.push(`"${file}" open`);
  for (const file of mappedFiles(pid, mount)) uses.push(`"${file}" mapped`);
  if (uses.length === 0) return [];
  return [{ kind: 'process', pid, command: commandOf(pid), uses }];
}

/** What Node, from version 24 on, calls its first thread: it says nothing to anybody. */
const FIRST_THREAD = 'MainThread';

/** The name that ps(1) shows, or the program's where that is no name. */
function commandOf(pid: number): string {
  const name = readText(`/proc/${pid}/comm`).trim();
  const program = name === FIRST_THREAD ? readLink(`/proc/${pid}/exe`) : undefined;
  return program === undefined ? name || '?' : path.basename(program);
}

/** Files of the mount in the process's memory map: `start-end perms offset dev inode path`. A mapping outlives its descriptor. */
function mappedFiles(pid: number, mount: MountEntry): Set<string> {
  const [major, minor] = mount.device.split(':').map((number) => Number(number).toString(16).padStart(2, '0'));
  const device = ` ${major}:${minor} `;
  const files = readText(`/proc/${pid}/maps`)
    .split('\n')
    .filter((line) => line.includes(device))
    .map((line) => line.slice(line.indexOf('/')));
  return new Set(files.filter((file) => isInside(file, mount.mountpoint)));
}

function loopHolders(mountpoint: string, table: MountTable): Holder[] {
  return listOf('/sys/block')
    .filter((name) => name.startsWith('loop'))
    .flatMap((name): Holder[] => {
      const file = readText(`/sys/block/${name}/loop/backing_file`).trim();
      if (file === '' || !isInside(file, mountpoint)) return [];
      // The device itself (/dev/loop0) or one of its partitions (/dev/loop0p1).
      const device = path.join('/dev', name);
      const over = table.entries.filter((entry) => entry.source === device || entry.source.startsWith(`${device}p`));
      return [{ kind: 'loop', device, file, mountedAt: over.map((entry) => entry.mountpoint) }];
    });
}

function swapHolders(mountpoint: string): Holder[] {
  return readText('/proc/swaps')
    .split('\n')
    .map((line) => line.split(/\s/)[0] ?? '')
    .filter((file) => file.startsWith('/') && isInside(file, mountpoint))
    .map((file) => ({ kind: 'swap', file }));
}

// Processes come and go while they are listed, and other users' are closed to us: what cannot be read holds nothing we can name.

function readLink(file: string): string | undefined {
  try {
    return fs.readlinkSync(file);
  } catch {
    return undefined;
  }
}

function readText(file: string): string {
  try {
    return fs.readFileSync(file, 'utf8');
  } catch {
    return '';
  }
}

function listOf(directory: string): string[] {
  try {
    return fs.readdirSync(directory);
  } catch {
    return [];
  }
}
