/** Snapshots of an image that imagefs has mounted: changed through the files of the mount, because its daemon holds the image. */
import fs from 'node:fs';
import path from 'node:path';
import { BlockError, errnoNameOf, hostError } from '../errors';
import type { SnapshotInfo } from '../formats/format';
import { isDead } from './checks';
import { MOUNT_TYPE, MountTable, ownerOf } from './mountinfo';
import { type DaemonProcess, findDaemons } from './processes';

/** How long a revert is tried again: a file that was closed just now may count as open for a moment. */
const CLOSING_MS = 1000;
const RETRY_MS = 50;

interface Snapshot {
  /** The folder in `snapshots`. */
  name: string;
  info: SnapshotInfo;
}

/** The folder of one image in a mount. */
export class LiveImage {
  private constructor(
    private readonly folder: string,
    private readonly mountpoint: string,
  ) {}

  /** Finds the mount that can write the image; undefined when there is none, or none that this user may enter. */
  static find(image: string): LiveImage | undefined {
    for (const { mountpoint, readOnly, named } of trustedDaemons()) {
      // Other mounts are not touched: looking into one keeps it busy, and waits for its daemon.
      if (readOnly || !named.some((name) => mayHold(name, image)) || isDead(mountpoint)) continue;
      const folder = [mountpoint, ...foldersIn(mountpoint)].find((candidate) => isFolderOf(candidate, image));
      if (folder !== undefined) return new LiveImage(folder, mountpoint);
    }
    return undefined;
  }

  list(): SnapshotInfo[] {
    return infoIn(this.folder)?.snapshots ?? [];
  }

  take(name: string): void {
    if (!fs.existsSync(this.snapshots)) {
      throw new BlockError('UNSUPPORTED_FEATURE', 'this image cannot have any', { path: this.folder });
    }
    this.attempt(() => fs.mkdirSync(path.join(this.snapshots, checked(name))));
  }

  /** @param name of the snapshot, as the image has it */
  remove(name: string): void {
    const found = this.all().find(({ info }) => info.name === name);
    this.attempt(() => fs.rmdirSync(path.join(this.snapshots, existing(found).name)));
  }

  /** @param name a name, or an id, which goes first */
  revert(name: string, force: boolean): void {
    const all = this.all();
    const found = all.find(({ info }) => info.id === name) ?? all.find(({ info }) => info.name === name);
    const file = path.join(this.snapshots, existing(found).name, '.revert');
    const deadline = Date.now() + CLOSING_MS;
    for (;;) {
      try {
        writeWord(file, force ? 'force' : 'now');
        return;
      } catch (error) {
        if (errnoNameOf(error) !== 'EBUSY' || Date.now() > deadline) throw this.failure(error);
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, RETRY_MS);
      }
    }
  }

  private get snapshots(): string {
    return path.join(this.folder, 'snapshots');
  }

  private all(): Snapshot[] {
    return foldersIn(this.snapshots).flatMap((folder) => {
      const info = infoIn(folder)?.snapshots?.[0];
      return info === undefined ? [] : [{ name: path.basename(folder), info }];
    });
  }

  private attempt(body: () => void): void {
    try {
      body();
    } catch (error) {
      throw this.failure(error);
    }
  }

  private failure(error: unknown): unknown {
    const where = `the mount at "${this.mountpoint}"`;
    switch (errnoNameOf(error)) {
      case 'EBUSY':
        return new BlockError('BUSY', `${where} is in use; close its files, or apply the snapshot with --force`);
      case 'EEXIST':
        return new BlockError('DENIED', `${where} has a snapshot of this name already`);
      default:
        return hostError(error, where);
    }
  }
}

/**
 * Daemons whose mounts this user may believe. Anybody can start a process that looks like a daemon, and serve a mount that
 * keeps its visitors waiting for ever or tells them lies: only the user's own mounts and root's are entered.
 */
function trustedDaemons(): DaemonProcess[] {
  const table = MountTable.read();
  const daemons = findDaemons();
  const trusted = new Set([0, process.getuid?.()]);
  return daemons.filter((daemon) => {
    const entry = table.find(daemon.mountpoint);
    return entry?.type === MOUNT_TYPE && trusted.has(daemon.uid) && daemon.uid === ownerOf(entry);
  });
}

/** The file can be written by its owner and read by nobody. */
function writeWord(file: string, word: string): void {
  const fd = fs.openSync(file, fs.constants.O_WRONLY);
  try {
    fs.writeSync(fd, word);
  } finally {
    fs.closeSync(fd);
  }
}

function checked(name: string): string {
  if (name !== '' && name !== '.' && name !== '..' && !name.includes('/')) return name;
  throw new BlockError('DENIED', `"${name}" cannot be the name of a folder, which it would be in the mount`);
}

function existing(found: Snapshot | undefined): Snapshot {
  if (found !== undefined) return found;
  throw new BlockError('NOT_FOUND', 'snapshot not found');
}

function foldersIn(directory: string): string[] {
  try {
    const entries = fs.readdirSync(directory, { withFileTypes: true });
    return entries.filter((entry) => entry.isDirectory()).map(({ name }) => path.join(directory, name));
  } catch {
    // Not ours to enter, or gone meanwhile.
    return [];
  }
}

function infoIn(folder: string): { filename: string; snapshots?: SnapshotInfo[] } | undefined {
  try {
    return JSON.parse(fs.readFileSync(path.join(folder, 'info.json'), 'utf8')) as { filename: string };
  } catch {
    // No folder of an image.
    return undefined;
  }
}

function isFolderOf(folder: string, image: string): boolean {
  const info = infoIn(folder);
  if (info === undefined) return false;
  return isSameFile(info.filename, image);
}

/** Is what the user named at the mount this image, or a directory with it? */
function mayHold(named: string, image: string): boolean {
  if (isSameFile(named, image)) return true;
  try {
    return fs.readdirSync(named).some((name) => isSameFile(path.join(named, name), image));
  } catch {
    // No directory, or none that this user may read.
    return false;
  }
}

function isSameFile(first: string, second: string): boolean {
  try {
    const [a, b] = [fs.statSync(first), fs.statSync(second)];
    return a.dev === b.dev && a.ino === b.ino;
  } catch {
    // One of them has been removed since it was opened.
    return false;
  }
}
