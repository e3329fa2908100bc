"""How the shipped models are made: `python -m palate.worlds.shapes.pretrain`.

course      a stage's clock, learning rate and checkpoint
vae         stage `vae`: the autoencoder, and the latents it makes of the training pictures
text        stage `text`: the text model, taught what a caption puts where
denoiser    stage `denoiser`: the loop over latents that both models share, and the export
unet        what is the first model's own: noise prediction by a UNet
transformer what is the flow model's own: velocity prediction by an MM-DiT
measure     stages `measure`, `table` and `pictures`: how a model draws, by the oracle
"""
