/** A host that runs full, or loses what was written, under a real mount: small file systems, and a loop device over a full one. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import { command as create } from '../../src/cli/commands/create';
import { type LaunchedDaemon, launchDaemon } from '../../src/daemon/launch';
import { unmount } from '../../src/fuse/unmount';
import { KIB, MIB } from '../../src/units';
import { checkFile, repairFile } from '../helpers/images';
import { patternBytes } from '../helpers/random';
import { daemonConfig, endOf, letGo, run } from '../mount/cli';

const DISK_BYTES = 32 * MIB;
const BLOCK = 192 * KIB;

export interface FullReport {
  /** Blocks that were written before the host was full. */
  written: number;
  /** What the failed ones were told. */
  codes: string[];
}

/** A mounted file system that is too small. */
export interface SmallHost {
  directory: string;
  /** Gives it room. */
  grow(): Promise<void>;
}

export async function succeed(program: string, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await run(program, args);
  if (code !== 0) throw new Error(`${program} ${args.join(' ')}: ${stderr}`);
  return stdout.trim();
}

export async function smallTmpfs(directory: string, bytes: number): Promise<SmallHost> {
  fs.mkdirSync(directory);
  await succeed('mount', '-t', 'tmpfs', '-o', `size=${bytes}`, 'none', directory);
  const grow = async () => void (await succeed('mount', '-o', `remount,size=${4 * DISK_BYTES}`, directory));
  return { directory, grow };
}

/** Filled up by a file that takes most of it. */
export async function smallExt4(directory: string, bytes: number): Promise<SmallHost> {
  fs.mkdirSync(directory);
  const file = `${directory}.ext4`;
  fs.writeFileSync(file, '');
  fs.truncateSync(file, 4 * DISK_BYTES);
  await succeed('mkfs.ext4', '-q', '-m', '0', '-b', '4096', file);
  await succeed('mount', '-o', 'loop', file, directory);
  const filler = path.join(directory, 'filler');
  const free = fs.statfsSync(directory);
  await succeed('fallocate', '-l', String(free.bavail * free.bsize - bytes), filler);
  return { directory, grow: async () => fs.unlinkSync(filler) };
}

interface Block {
  offset: number;
  bytes: Uint8Array;
}

class Disk {
  private constructor(
    readonly mountpoint: string,
    private readonly daemon: LaunchedDaemon,
    readonly fd: number,
  ) {}

  static async mount(image: string, mountpoint: string): Promise<Disk> {
    const daemon = await launchDaemon(daemonConfig(image, mountpoint), [image]);
    return new Disk(mountpoint, daemon, fs.openSync(path.join(mountpoint, 'disk'), 'r+'));
  }

  /** The code of the error; undefined when it was written. */
  write({ offset, bytes }: Block): string | undefined {
    return codeOf(() => {
      const written = fs.writeSync(this.fd, bytes, 0, bytes.length, offset);
      if (written !== bytes.length) throw new Error(`${written} bytes were written`);
    });
  }

  sync(): string | undefined {
    return codeOf(() => fs.fsyncSync(this.fd));
  }

  expect(blocks: readonly Block[], when: string): void {
    for (const { offset, bytes } of blocks) {
      const found = new Uint8Array(bytes.length);
      fs.readSync(this.fd, found, 0, found.length, offset);
      if (Buffer.compare(found, bytes) !== 0) throw new Error(`${when}: the block at ${offset} is not what it was`);
    }
  }

  /** @returns the daemon's exit code */
  async leave(): Promise<number> {
    fs.closeSync(this.fd);
    await letGo(this.mountpoint);
    return endOf(this.daemon);
  }

  async kill(): Promise<void> {
    this.daemon.signal('SIGKILL');
    await endOf(this.daemon);
    codeOf(() => fs.closeSync(this.fd));
    await unmount(this.mountpoint, { lazy: true });
  }
}

function codeOf(act: () => void): string | undefined {
  try {
    act();
    return undefined;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? String(error);
  }
}

function block(index: number, tag: number): Block {
  // Over the borders of clusters.
  const offset = 1024 + index * BLOCK;
  return { offset, bytes: patternBytes(offset, BLOCK, tag) };
}

function createIn(host: SmallHost, format: string, options: readonly string[]): string {
  const image = path.join(host.directory, `vm.${format}`);
  const code = create.run(['-q', '-f', format, ...options, image, String(DISK_BYTES)]);
  if (code !== 0) throw new Error(`create ${image}: exit code ${String(code)}`);
  return image;
}

function sound(image: string, when: string): void {
  const { corruptions, checkErrors, messages } = checkFile(image);
  if (corruptions + checkErrors > 0) throw new Error(`${when}: check: ${messages.slice(0, 3).join('; ')}`);
}

/**
 * Writes until the host is full; everything is still readable and what exists can be overwritten. Then, by `end`, the host gets room
 * and everything goes on, or the daemon is killed while it is full. Throws with a line that says what is wrong.
 */
export async function runFull(
  host: SmallHost,
  mountpoint: string,
  format: string,
  options: readonly string[],
  end: 'room' | 'kill',
): Promise<FullReport> {
  fs.mkdirSync(mountpoint, { recursive: true });
  const image = createIn(host, format, options);
  const disk = await Disk.mount(image, mountpoint);
  const blocks = [0, 1, 2].map((index) => block(index, 1));
  for (const each of blocks) if (disk.write(each) !== undefined) throw new Error('the first writes failed');
  if (disk.sync() !== undefined) throw new Error('the first sync failed');
  const safe = [...blocks];
  const codes = new Set<string>();
  const failed: Block[] = [];
  for (let index = blocks.length; failed.length < 4; index++) {
    if ((index + 1) * BLOCK > DISK_BYTES) throw new Error('the host never ran full');
    const code = disk.write(block(index, 1));
    if (code === undefined) blocks.push(block(index, 1));
    else {
      codes.add(code);
      failed.push(block(index, 1));
    }
  }
  const report = { written: blocks.length, codes: [...codes] };
  const odd = report.codes.filter((code) => code !== 'ENOSPC');
  if (odd.length > 0) throw new Error(`a write on a full host failed with ${odd.join(', ')}`);
  const zeroes = failed.map(({ offset }) => ({ offset, bytes: new Uint8Array(BLOCK) }));
  disk.expect([...blocks, ...zeroes.slice(1)], 'while the host is full');
  if (fs.readdirSync(mountpoint).length === 0 || fs.readFileSync(path.join(mountpoint, 'info.json')).length === 0) {
    throw new Error('the tree cannot be read while the host is full');
  }
  const again = block(1, 2);
  const refused = disk.write(again);
  if (refused !== undefined) throw new Error(`overwriting on a full host failed with ${refused}`);
  blocks[1] = safe[1] = again;
  const synced = disk.sync();
  if (synced !== undefined && synced !== 'ENOSPC') throw new Error(`a sync on a full host failed with ${synced}`);
  if (end === 'kill') {
    await disk.kill();
    sound(image, 'after a kill on a full host');
    await host.grow();
  } else {
    await host.grow();
    for (const each of failed) {
      const code = disk.write(each);
      if (code !== undefined) throw new Error(`once there was room a write failed with ${code}`);
    }
    blocks.push(...failed);
    const code = disk.sync();
    if (code !== undefined) throw new Error(`once there was room a sync failed with ${code}`);
    if ((await disk.leave()) !== 0) throw new Error('the daemon reported a failure although there was room');
  }
  if (synced === undefined || end === 'room') safe.splice(0, safe.length, ...blocks);
  const reopened = await Disk.mount(image, mountpoint);
  reopened.expect(safe, 'after reopening');
  if ((await reopened.leave()) !== 0) throw new Error('the reopened image reported a failure');
  sound(image, 'at the end');
  return report;
}

/**
 * The host tells once that it has lost written pages. The image is on an ext4 over a loop device over a file for which there is no more
 * room: a write into the page cache succeeds, its sync fails. @returns the codes of the syncs that failed
 */
export async function runLostSync(directory: string, mountpoint: string, format: string): Promise<string[]> {
  const below = await smallTmpfs(path.join(directory, 'below'), 12 * MIB);
  const file = path.join(below.directory, 'ext4');
  fs.writeFileSync(file, '');
  fs.truncateSync(file, 64 * MIB);
  const upper = path.join(directory, 'upper');
  fs.mkdirSync(upper);
  fs.mkdirSync(mountpoint, { recursive: true });
  await succeed('mkfs.ext4', '-q', '-O', '^has_journal', '-b', '4096', file);
  await succeed('mount', '-o', 'loop,errors=continue', file, upper);
  const image = createIn({ directory: upper, grow: below.grow }, format, []);
  const disk = await Disk.mount(image, mountpoint);
  const safe = [0, 1, 2].map((index) => block(index, 1));
  for (const each of safe) if (disk.write(each) !== undefined) throw new Error('the first writes failed');
  if (disk.sync() !== undefined) throw new Error('the first sync failed');
  const blocks = [...safe];
  // More than the tmpfs has room for; ext4 has.
  for (let index = blocks.length; index < 90; index++) {
    const code = disk.write(block(index, 1));
    if (code !== undefined) throw new Error(`a write into the page cache failed with ${code}`);
    blocks.push(block(index, 1));
  }
  const codes = [disk.sync()];
  await below.grow();
  codes.push(disk.sync(), disk.write(block(0, 2)) ?? disk.sync());
  if (codes.some((code) => code === undefined)) throw new Error(`a sync succeeded after one had failed: ${codes}`);
  if (fs.readdirSync(mountpoint).length === 0) throw new Error('the tree cannot be read after a failed sync');
  disk.expect(safe.slice(1), 'after a failed sync');
  if ((await disk.leave()) === 0) throw new Error('the daemon reported no failure at its end');
  await succeed('umount', upper);
  await succeed('mount', '-o', 'loop', file, upper);
  sound(image, 'after a failed sync');
  const reopened = await Disk.mount(image, mountpoint);
  reopened.expect(safe.slice(1), 'after a failed sync and reopening');
  if (reopened.write(block(0, 3)) !== undefined || reopened.sync() !== undefined) {
    throw new Error('the reopened image cannot be written');
  }
  if ((await reopened.leave()) !== 0) throw new Error('the reopened image reported a failure');
  if (format === 'qcow2' || format === 'qed') repairFile(image, 'leaks');
  sound(image, 'at the end');
  await succeed('umount', upper);
  await succeed('umount', below.directory);
  return codes.map(String);
}
