"""The open hand's build: a procedural human hand with MANO's interface, made from published body measures.

    python -m interhand_prior.hands.build [OUT.npz]

The order of the work, one module each:

    anthropometry      every published number, with its citation
    skeleton           16 joints, five tips, a frame per bone; forward kinematics
    field              the body as a smooth union of cones and ellipsoids, each bound to a bone
    fingers, palm      fingers as rings cast onto the field; the palm as a remeshed iso-surface (remesh)
    assemble           one mesh of 778 vertices and 1538 faces, with MANO's vertex ids where other code uses them
    skinning           at most four bones a vertex
    shape              ten unit-variance betas from the measures' covariance; the joint regressor
    correctives        posedirs, damped
    pose_statistics    hands_mean and hands_components from the ranges of motion
    asset, checks      the whole, written to a file; what must hold of it
    poses              named poses for pictures and checks

Needs the extra ``pip install "interhand_prior[build]"`` (scipy, scikit-image). Units inside are millimetres and
radians; the asset is written in metres. Nothing of MANO's learned data is used: see assets/README.md.
"""
