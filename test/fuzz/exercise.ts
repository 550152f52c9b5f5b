/** Everything that imagefs does with an image, done to one that is damaged. What is thrown and is no answer, is a finding. */
import * as fs from 'node:fs';
import * as path from 'node:path';
import type { BlockNode } from '../../src/block/node';
import { openImage } from '../../src/block/open';
import {
  deleteSnapshot,
  listSnapshots,
  renameSnapshot,
  revertToSnapshot,
  takeSnapshot,
} from '../../src/block/snapshots';
import { UsageError } from '../../src/cli/command';
import { command as check } from '../../src/cli/commands/check';
import { command as info } from '../../src/cli/commands/info';
import { command as map } from '../../src/cli/commands/map';
import { command as snapshot } from '../../src/cli/commands/snapshot';
import type { DaemonConfig } from '../../src/daemon/config';
import { MountedImages } from '../../src/daemon/images';
import { BlockError } from '../../src/errors';
import { formatNameOf, PROBE_BYTES } from '../../src/formats/registry';
import { createTableCache, TABLE_CACHE_MIN_BYTES } from '../../src/shared/table-cache';
import { KIB, MIB } from '../../src/units';
import { FileError, type FileSystem } from '../../src/vfs/filesystem';
import { createFileSystem, finishSnapshots } from '../../src/vfs/image-filesystem';
import { buildTree } from '../../src/vfs/tree';
import { patternBytes, type Random } from '../helpers/random';

export interface Finding {
  step: string;
  problem: string;
}

/** What one case came to. */
export interface Result {
  findings: Finding[];
  /** Exit code of `check`, or the code of the error; what the disk came to. */
  check: string;
  opened: string;
}

/** Never in any image: what a disk must not show of a file outside its directory. */
export const SECRET_WORDS = Buffer.from('a secret of the host, which no stranger may see');

const CACHE = createTableCache(TABLE_CACHE_MIN_BYTES);
const READ_BYTES = MIB;
/** Reads of one disk, and folders in one listing: a damaged image may have a million. */
const READS_MAX = 24;
const FOLDERS_MAX = 12;
const READ = { read: true, write: false, truncate: false };
const buffer = new Uint8Array(READ_BYTES);

export class Exercise {
  readonly findings: Finding[] = [];

  /**
   * @param file the image
   * @param looksRaw its format will be guessed as raw
   */
  constructor(
    private readonly file: string,
    private readonly looksRaw: boolean,
  ) {}

  /** All that only reads. */
  reading(): { check: string; opened: string } {
    const { file } = this;
    this.step('info', () => info.run(['--backing-chain', '--output=json', file]));
    this.step('info, human', () => info.run([file]));
    const checked = this.step('check', () => check.run(['--output=json', file]));
    this.step('map', () => map.run(['--output=json', file]));
    this.step('map, human', () => map.run([file]));
    // With -U: without, it looks at every mount of the machine first.
    this.step('snapshot -l', () => snapshot.run(['-l', '-U', file]));
    const opened = this.mounted('read-only', true, (fileSystem) => this.walk(fileSystem, fileSystem.rootIno, 0));
    return { check: checked, opened };
  }

  /** All that writes; each on a fresh copy. */
  writing(restore: () => void, random: Random): void {
    const { file } = this;
    const again = (step: string) => this.mounted(step, true, (mounted) => this.walk(mounted, mounted.rootIno, 0));
    this.mounted('read-write', false, (fileSystem) => {
      const ino = this.try('lookup disk', () => fileSystem.lookup(fileSystem.rootIno, 'disk'));
      if (ino !== undefined) this.write(fileSystem, ino, random);
    });
    this.refusesDisguise();
    again('after writes');
    restore();
    this.step('snapshots', () => this.snapshots(random));
    again('after snapshots');
    for (const mode of ['leaks', 'all']) {
      restore();
      const repaired = this.step(`check -r ${mode}`, () => check.run(['-q', '-r', mode, file]));
      const then = this.step(`check after -r ${mode}`, () => check.run(['-q', file]));
      // What calls itself repaired is.
      if (repaired === '0' && then !== '0') this.finding(`check -r ${mode}`, `says 0, and check then says ${then}`);
    }
    again('after check -r all');
  }

  private mounted(step: string, readOnly: boolean, use: (fileSystem: FileSystem) => void): string {
    const { file } = this;
    return this.step(step, () => {
      const config = {
        sources: [{ path: file }],
        single: true,
        readOnly,
        backing: 'directory',
        cacheSize: TABLE_CACHE_MIN_BYTES,
        forceShare: false,
      } as unknown as DaemonConfig;
      const images = MountedImages.open(config, 1);
      try {
        this.gateHeld(images.nodes[0]);
        const plan = buildTree(images.treeImages(), { singleImage: true, mountedMs: 0 });
        const options = { growable: true, readOnly, uid: 0, gid: 0 };
        use(createFileSystem(plan, images.nodes, options));
        if (!readOnly) finishSnapshots(plan, images.nodes);
      } finally {
        images.close();
      }
    });
  }

  /** No raw layer is outside the directory. */
  private gateHeld(top: BlockNode | undefined): void {
    const directory = path.dirname(this.file);
    for (let node = top?.backing; node !== undefined; node = node.backing) {
      const real = fs.realpathSync(node.path);
      if (node.format === 'raw' && path.dirname(real) !== directory) this.finding('gate', `raw layer "${real}"`);
    }
  }

  private walk(fileSystem: FileSystem, ino: number, depth: number): void {
    const entries = this.try('list', () => fileSystem.list(ino)) ?? [];
    for (const { name, kind, ino: child } of entries.slice(0, depth === 0 ? entries.length : FOLDERS_MAX)) {
      const bad = name === '' || name === '.' || name === '..' || /[/\0]/.test(name) || Buffer.byteLength(name) > 255;
      if (bad) this.finding('list', `name ${JSON.stringify(name)}`);
      this.try('lookup', () => fileSystem.lookup(ino, name));
      this.try('attributes', () => fileSystem.attributes(child));
      if (kind === 'directory') this.walk(fileSystem, child, depth + 1);
      else this.readFile(fileSystem, child, name);
    }
  }

  private readFile(fileSystem: FileSystem, ino: number, name: string): void {
    const handle = this.try(`open ${name}`, () => fileSystem.open(ino, READ))?.handle;
    if (handle === undefined) return;
    const size = this.try('attributes', () => fileSystem.attributes(ino))?.size ?? 0;
    const places = [0, Math.max(0, size - 4096), Math.floor(size / 2)];
    for (let at = 0, reads = 0; reads < READS_MAX && at < size; reads++) {
      const data = this.try(`seek ${name}`, () => fileSystem.seek(ino, handle, at, 'data'));
      if (data === undefined) break;
      places.push(data);
      at = this.try(`seek ${name}`, () => fileSystem.seek(ino, handle, data, 'hole')) ?? data + READ_BYTES;
    }
    for (const place of places) {
      const got = this.try(`read ${name}`, () => fileSystem.read(ino, handle, place, buffer, 0, READ_BYTES));
      if (got === undefined) {
        // Whatever is wrong with one cluster, the others can be read.
        for (let at = 0; at < 64 * KIB; at += 4096) {
          this.try(`read ${name}`, () => fileSystem.read(ino, handle, place + at, buffer, 0, 4096));
        }
      } else if (Buffer.from(buffer.buffer, 0, got).includes(SECRET_WORDS)) {
        this.finding(`read ${name}`, 'shows a file outside the directory of the image');
      }
    }
    this.try(`release ${name}`, () => fileSystem.release(ino, handle));
  }

  private write(fileSystem: FileSystem, ino: number, random: Random): void {
    const handle = this.try('open disk', () => fileSystem.open(ino, { ...READ, write: true }))?.handle;
    if (handle === undefined) return;
    const size = this.try('attributes', () => fileSystem.attributes(ino))?.size ?? 0;
    const at = () => Math.max(0, random.pick([0, 512, size - 8192, random.below(size + 1), random.below(65_536)]));
    const length = () => random.pick([1, 512, 4096, 4097, 20_000]);
    const actions: Record<string, () => unknown> = {
      write: () => fileSystem.write(ino, handle, at(), patternBytes(0, 20_000, 5), 0, length(), random.chance(0.2)),
      punch: () => fileSystem.fallocate(ino, handle, 'punch-hole', true, at(), length() * 4),
      zero: () => fileSystem.fallocate(ino, handle, 'zero-range', true, at(), length() * 4),
      allocate: () => fileSystem.fallocate(ino, handle, 'allocate', true, at(), length()),
      fsync: () => fileSystem.fsync(ino, handle),
      read: () => fileSystem.read(ino, handle, at(), buffer, 0, 65_536),
      grow: () => fileSystem.setSize(ino, size + random.pick([512, 65_536, 2 ** 21, 2 ** 31])),
    };
    const names = Object.keys(actions);
    for (let i = 0; i < 16; i++) {
      const name = random.chance(0.5) ? 'write' : random.pick(names);
      this.try(name, actions[name]);
    }
    this.try('header into the first sector', () => {
      const header = Buffer.from('514649fb00000003', 'hex');
      fileSystem.write(ino, handle, random.pick([0, 0, 2]), header, 0, header.length, false);
    });
    this.try('fsync', () => fileSystem.fsync(ino, handle));
    this.try('release', () => fileSystem.release(ino, handle));
  }

  /** A disk that was guessed to be raw is that still. */
  private refusesDisguise(): void {
    if (!this.looksRaw) return;
    const head = Buffer.alloc(PROBE_BYTES);
    const fd = fs.openSync(this.file, 'r');
    const got = fs.readSync(fd, head, 0, PROBE_BYTES, 0);
    fs.closeSync(fd);
    const name = formatNameOf(head.subarray(0, got));
    if (name !== 'raw') this.finding('write', `a disk that was guessed as raw looks like ${name}`);
  }

  private snapshots(random: Random): void {
    const image = openImage(this.file, {
      readOnly: false,
      backing: 'directory',
      threads: 1,
      cache: CACHE,
      imageId: 0,
      lock: true,
    });
    const { node } = image;
    const id = () => random.pick(listSnapshots(node).slice(0, 20))?.id ?? 'none';
    const write = () => node.write(random.below(node.size()), patternBytes(0, 700, 6), 0, 700);
    try {
      this.try('take', () => takeSnapshot(node, 'new'));
      for (let i = 0; i < 5; i++) {
        this.try('write', write);
        const actions: [string, () => unknown][] = [
          ['revert', () => revertToSnapshot(node, id())],
          ['delete', () => deleteSnapshot(node, id())],
          ['rename', () => renameSnapshot(node, id(), 'x'.repeat(random.below(300)))],
          ['take', () => takeSnapshot(node, `${i}`)],
          ['flush', () => node.flush()],
        ];
        this.try(...random.pick(actions));
      }
    } finally {
      image.close();
    }
  }

  /** Runs a step of the report. @returns what it answered, or the code of the error */
  private step(step: string, body: () => unknown): string {
    try {
      return String(body() ?? 'done');
    } catch (error) {
      this.judge(step, error);
      return error instanceof BlockError ? error.code : 'error';
    }
  }

  private try<T>(step: string, body: () => T): T | undefined {
    try {
      return body();
    } catch (error) {
      this.judge(step, error);
      return undefined;
    }
  }

  private judge(step: string, error: unknown): void {
    if (error instanceof BlockError) {
      if (/undefined|NaN|Infinity|\[object/.test(error.message)) this.finding(step, `message: ${error.message}`);
      return;
    }
    if (error instanceof FileError || error instanceof UsageError) return;
    this.finding(step, error instanceof Error ? (error.stack ?? error.message) : String(error));
  }

  private finding(step: string, problem: string): void {
    if (this.findings.length < 20) this.findings.push({ step, problem });
  }
}
