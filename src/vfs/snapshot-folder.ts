/**
 * `snapshots/` of one image in one thread: which snapshots there are, by what names, and what making, removing and renaming a
 * directory in it means. All threads agree through `SnapshotSlots`; this thread's copy is made anew when the list has moved.
 */
import * as assert from 'node:assert';
import type { BlockNode } from '../block/node';
import { logOf } from '../log';
import { FileError } from './filesystem';
import { cutToBytes, NAME_MAX_BYTES, safeName } from './names';
import type { Slot, SnapshotSlots } from './snapshot-slots';
import type { SnapshotInfo, SnapshotSource } from './snapshot-source';
import type { VirtualFile } from './virtual-file';

const log = logOf('vfs:snapshots');

/** How long a revert waits for handles that are being closed: close(2) returns before its RELEASE is served. */
const CLOSING_MS = 200;

/** A snapshot as this thread knows it. */
export interface SnapshotView {
  readonly folder: SnapshotFolder;
  readonly slot: Slot;
  info: SnapshotInfo;
  /** Its folder's name; undefined once it is deleted. */
  name: string | undefined;
  /** Opened when first needed. */
  node: BlockNode | undefined;
  /** By place in the view; made when first asked for. */
  files: (VirtualFile | undefined)[] | undefined;
}

/** What the folder tells the thread's other folders of. */
export interface FolderContext {
  source: SnapshotSource;
  /** All views of this thread, by serial number. */
  views: Map<number, SnapshotView>;
  /** The image's disk reads differently from now on: whoever keeps its content must forget it. */
  onReplaced(image: number): void;
}

export class SnapshotFolder {
  /** This thread's views, in the order in which they came. */
  private ordered: SnapshotView[] = [];
  private byName = new Map<string, SnapshotView>();
  private seenGeneration: number | undefined;
  private seenVersion = -1;

  constructor(
    readonly image: number,
    readonly node: BlockNode,
    private readonly slots: SnapshotSlots,
    private readonly context: FolderContext,
  ) {}

  /** The snapshots that have a name. */
  list(): readonly SnapshotView[] {
    this.refresh();
    return this.ordered;
  }

  find(name: string): SnapshotView {
    this.refresh();
    const view = this.byName.get(name);
    if (view !== undefined) return view;
    if (Buffer.byteLength(name) > NAME_MAX_BYTES) throw new FileError('ENAMETOOLONG', 'This name is too long');
    throw new FileError('ENOENT', `"${this.node.path}" has no snapshot "${name}"`);
  }

  /** Brings this thread's copy up to date: two numbers are compared when nothing has changed. */
  refresh(): void {
    const { slots } = this;
    if (this.context.source.generation(this.node) === this.seenGeneration && slots.version === this.seenVersion) return;
    slots.table.with(() => {
      // Looked at before the list is read: what changes meanwhile is seen the next time.
      const generation = this.context.source.generation(this.node);
      this.rebuild(this.context.source.list(this.node));
      this.seenGeneration = generation;
      this.seenVersion = slots.version;
    });
  }

  /** `mkdir` */
  take(name: string): SnapshotView {
    checkName(name);
    return this.change(() => {
      this.assertFree(name);
      const { id } = this.context.source.take(this.node, name);
      this.refresh();
      const view = this.ordered.find(({ info }) => info.id === id);
      assert.ok(view !== undefined, `snapshot ${id} has just been taken`);
      this.slots.table.with(() => this.slots.touched());
      return view;
    });
  }

  /**
   * `rmdir`: the name goes at once; the clusters go when nobody has the files open any more.
   * @param mayBeOpen false: EBUSY while somebody has
   */
  remove(name: string, mayBeOpen: boolean): void {
    this.change(() => {
      const view = this.find(name);
      const pinned = this.slots.table.with(() => {
        const isPinned = this.slots.isPinned(view.slot);
        if (isPinned && !mayBeOpen) throw new FileError('EBUSY', `Snapshot ${view.info.id} is open`);
        this.slots.doom(view.slot);
        return isPinned;
      });
      if (pinned) log('snapshot %s is in use: deleted when it is let go', view.info.id);
      else this.dispose(view);
    });
  }

  /** `mv` inside of the folder. */
  rename(name: string, newName: string): void {
    checkName(newName);
    this.change(() => {
      const view = this.find(name);
      if (name === newName) return;
      this.assertFree(newName);
      this.context.source.rename(this.node, view.info.id, newName);
      this.slots.table.with(() => {
        this.slots.markSuffixed(view.slot, false);
        this.slots.touched();
      });
      this.refresh();
    });
  }

  /** Makes the disk what the snapshot is. */
  revert(view: SnapshotView, force: boolean): void {
    this.change(() => {
      this.refresh();
      if (view.name === undefined) throw deleted(view);
      if (!force && !this.slots.waitForClose(CLOSING_MS)) {
        throw new FileError('EBUSY', `Cannot revert "${this.node.path}": its disk is open`);
      }
      // What mappings have changed belongs to the disk as it was: it must not be written over what it becomes.
      if (force) this.context.onReplaced(this.image);
      this.context.source.revert(this.node, view.info.id);
      this.context.onReplaced(this.image);
    });
  }

  /** Counts a handle on one of the files that read the snapshot's clusters. */
  pin(view: SnapshotView): void {
    if (!this.slots.table.with(() => this.slots.pin(view.slot))) throw deleted(view);
  }

  unpin(view: SnapshotView): void {
    if (!this.slots.table.with(() => this.slots.unpin(view.slot))) return;
    try {
      this.slots.operations.with(() => this.dispose(view));
    } catch (error) {
      // close(2) has no way to say it. The snapshot has its name again, so it can be deleted once more.
      log('snapshot %s cannot be deleted: %O', view.info.id, error);
    }
  }

  /** When the mount is gone: handles that were never released keep nothing any more. */
  disposeDoomed(): void {
    this.refresh();
    for (const view of this.context.views.values()) {
      if (view.folder === this && view.slot.doomed) this.slots.operations.with(() => this.dispose(view));
    }
  }

  /** Deletes it from the image. Operations mutex held. */
  private dispose(view: SnapshotView): void {
    this.refresh();
    try {
      this.context.source.remove(this.node, view.info.id);
    } catch (error) {
      this.slots.table.with(() => {
        this.slots.pardon(view.slot);
        // Somebody may have taken the name since.
        this.slots.markSuffixed(view.slot, view.slot.suffixed || this.byName.has(plainName(view.info)));
      });
      throw error;
    }
    // Before the image can give the id to another snapshot.
    this.refresh();
  }

  private change<T>(act: () => T): T {
    if (this.node.readOnly) {
      throw new FileError('EROFS', `Cannot change the snapshots of "${this.node.path}": it is open read-only`);
    }
    return this.slots.operations.with(act);
  }

  private assertFree(name: string): void {
    this.refresh();
    if (!this.byName.has(name)) return;
    throw new FileError('EEXIST', `"${this.node.path}" has a snapshot "${name}" already`);
  }

  /** Table mutex held. */
  private rebuild(infos: readonly SnapshotInfo[]): void {
    const slots = this.slots.reconcile(infos.map(({ id }) => id));
    const { views } = this.context;
    const before = new Set([...views.values()].filter(({ folder }) => folder === this));
    const current = infos.flatMap((info, index): SnapshotView[] => {
      const slot = slots[index];
      if (slot === undefined) return [];
      const known = views.get(slot.serial);
      const view = known ?? { folder: this, slot, info, name: undefined, node: undefined, files: undefined };
      // The same object as long as the snapshot lives: open files of this thread are in it.
      Object.assign(view.slot, slot);
      // A text tells of the old name; none of the files keeps state of its open handles.
      if (view.info.name !== info.name) view.files = undefined;
      view.info = info;
      before.delete(view);
      views.set(slot.serial, view);
      return [view];
    });
    for (const gone of before) {
      gone.name = undefined;
      gone.slot.doomed = true;
      views.delete(gone.slot.serial);
    }
    current.sort((a, b) => a.slot.serial - b.slot.serial);
    this.byName = this.nameAll(current);
    this.ordered = [...this.byName.values()].sort((a, b) => a.slot.serial - b.slot.serial);
  }

  /**
   * Plain names first, they are unique; then those with an id behind them, in order, so that all threads find the same. A new
   * snapshot whose name is taken gets its id.
   */
  private nameAll(views: readonly SnapshotView[]): Map<string, SnapshotView> {
    const names = new Map<string, SnapshotView>();
    const give = (view: SnapshotView, name: string) => {
      view.name = name;
      names.set(name, view);
    };
    const named = views.filter(({ slot }) => !slot.doomed);
    for (const view of views) view.name = undefined;
    const old = named.filter(({ slot }) => !slot.fresh);
    // Taken it can only be by one that came while this one was about to be deleted, which then failed.
    const isPlain = (view: SnapshotView) => !view.slot.suffixed && !names.has(plainName(view.info));
    for (const view of old) if (isPlain(view)) give(view, plainName(view.info));
    for (const view of old) if (view.name === undefined) give(view, suffixedName(view.info, names));
    for (const view of named) {
      if (!view.slot.fresh) continue;
      const plain = plainName(view.info);
      this.slots.markSuffixed(view.slot, names.has(plain));
      give(view, view.slot.suffixed ? suffixedName(view.info, names) : plain);
      view.slot.fresh = false;
    }
    return names;
  }
}

function plainName({ id, name }: SnapshotInfo): string {
  return safeName(name, safeName(id, 'snapshot'));
}

/** `NAME~ID`; with `~` more behind it while somebody is called that. */
function suffixedName(info: SnapshotInfo, taken: ReadonlyMap<string, unknown>): string {
  let suffix = `~${safeName(info.id, 'snapshot')}`;
  for (;;) {
    const short = cutToBytes(suffix, NAME_MAX_BYTES - 1);
    const name = cutToBytes(plainName(info), NAME_MAX_BYTES - Buffer.byteLength(short)) + short;
    if (!taken.has(name)) return name;
    suffix = `~${suffix}`;
  }
}

/** A name for a new directory that will be shown as it was asked for. */
function checkName(name: string): void {
  if (Buffer.byteLength(name) > NAME_MAX_BYTES) throw new FileError('ENAMETOOLONG', 'This name is too long');
  // What was no UTF-8 has become U+FFFD on its way.
  if (name === '' || safeName(name, '') !== name || name.includes('\uFFFD')) {
    throw new FileError('EINVAL', 'The name of a snapshot is text without control characters');
  }
}

function deleted(view: SnapshotView): FileError {
  return new FileError('ENOENT', `Snapshot ${view.info.id} has been deleted`);
}
